"""Stage 1: manifests, media, encoders and their trunks, the extraction run. Called, it is the extraction run itself."""

from .._callable_room import make_callable

make_callable(__name__, ".stage.extract", "extract")
