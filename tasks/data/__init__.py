"""Images and their labels, wherever they lie: bundled data sets, and everything that `SOURCES` knows, streamed."""

from fewstep.tasks.data.bundled import DATASETS, Dataset, fashion_folder, load_dataset
from fewstep.tasks.data.folders import load_image_folder
from fewstep.tasks.data.source import SOURCES, Record, Source, kind_of_place, load_images, open_source

__all__ = [
    "DATASETS",
    "SOURCES",
    "Dataset",
    "Record",
    "Source",
    "fashion_folder",
    "kind_of_place",
    "load_dataset",
    "load_image_folder",
    "load_images",
    "open_source",
]
