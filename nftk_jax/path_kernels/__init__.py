"""Path kernels (Domingos 2020): a trained network as a kernel machine."""
