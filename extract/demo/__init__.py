"""The made data set: scenes, pictures, sound, questions."""
