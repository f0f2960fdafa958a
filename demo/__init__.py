"""The demo: made data sets, packaged pretrained weights, and the story that is told with them."""
