"""The conventions of gsplat that both rasterisers follow."""

NEAR, FAR = 0.01, 1e10  # scene units of the caller, who normalises the median depth to about 1
BLUR_PX2 = 0.3  # added to the diagonal of the projected covariance
MIN_ALPHA = 1.0 / 255.0  # less is skipped
MAX_ALPHA = 0.999
MIN_TRANSMITTANCE = 1e-4  # a pixel stops before the Gaussian that would bring it there
