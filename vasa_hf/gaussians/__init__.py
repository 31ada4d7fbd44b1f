"""3D Gaussians: rendering, density control, binding to a mesh, files. Start at `render.py`."""
