"""The WorldWarp loop (arXiv 2512.19678), without sockets or host applications. Enter through `worldwarp_core.api`."""

__version__ = "0.1.0"
