"""Features that others computed, brought into a store: what their files mean, how they are read, where they go."""
