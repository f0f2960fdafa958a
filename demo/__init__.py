"""The demo: a made data set, packaged pretrained weights, and the story that is told with them."""
