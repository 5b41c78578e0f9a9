"""Where the images of a row may lie, and which places are out of bounds."""

from pathlib import Path

from omnitune.errors import Refused, shown
from omnitune.io import storage
from omnitune.io.places import check_url, is_below


def image_places(image: str, samples: str, root: str | None = None) -> list[str]:
    """Where an image is looked for: beside the .jsonl, then in the working directory; absolute ones and URLs as such.

    Args:
        image: as it stands in the row.
        samples: path or URL of the .jsonl.
        root: a folder or URL, below which alone images may lie; None allows every place.

    Raises:
        Refused: bad_url; outside_image_root where no place is below the root.
    """
    if storage.is_url(image):
        check_url(image)
        places = [image]
    elif Path(image).is_absolute():
        places = [image]
    else:
        beside = storage.join(storage.parent(samples), image)
        if storage.is_url(beside):
            check_url(beside)
        places = [beside if storage.is_url(beside) else str(Path(beside)), str(Path(image))]
    if root is not None:
        places = [place for place in places if is_below(place, root)]
        if not places:
            raise Refused("outside_image_root", f"{shown(image)} does not lie below data.image_root: {root}")
    return list(dict.fromkeys(places))
