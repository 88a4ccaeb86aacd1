"""What can be wrong with a dataset, told so that it can be mended."""


class DatasetError(ValueError):
    """A dataset that cannot be used as it is; the message names the file or episode and the fix."""


class VideoError(Exception):
    """A video file, or a part of it, that cannot be read. The reader knows which episodes it concerns and says so."""
