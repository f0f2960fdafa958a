"""The experiment file as stage 2 reads it, and the settings that a run keeps."""
