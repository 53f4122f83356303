"""The WorldWarp loop (arXiv 2512.19678): knows no socket and no host application. Enter through `worldwarp_core.api`."""

__version__ = "0.1.0"
