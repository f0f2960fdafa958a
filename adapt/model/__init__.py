"""The joint model: frozen units, adapters between them, a head at the end."""
