"""The WorldWarp loop (arXiv 2512.19678), without sockets or host applications. Enter through `worldwarp_core.api`.

From the ground up, and each takes only from what is named before it:

    errors, atomic_write         what everything uses
    cameras, splat_files         camera paths and splats, with their files; NumPy alone
    checkpoint, spec             what goes into a shot and comes out of it; NumPy alone
    pictures, tracking           pictures and depth from files; cameras from a video
    model_files                  models on the disk and on the Hub
    geometry, history, splats    depth, the frames made so far, and the Gaussian cache that they become
    loop                         the method, chunk by chunk
    st_diff                      the learned fill
    transformer, wan, preview    what it runs on: Wan 2.1's models, and the small ones that ship
    engine, api                  the models and settings of one machine, and the door to them
    worlds                       procedural worlds, for the two that follow
    evaluation, training         measuring the fills, and teaching them
"""

__version__ = "0.1.0"
