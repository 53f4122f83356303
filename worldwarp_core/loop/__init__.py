"""The WorldWarp loop: chunk by chunk from a camera path and a start frame to frames and a world."""
