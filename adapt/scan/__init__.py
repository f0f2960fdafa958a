"""The selective scan and Mamba's block on it."""
