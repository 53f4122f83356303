"""The small networks that ship with WorldWarp: they generate on any machine, without a download."""
