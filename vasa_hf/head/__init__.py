"""The parametric head.

`load_parametric_head()` loads a whole head with joints (`ParametricHead`), to which VASA-3D binds its Gaussians: the
built-in one, ICT-FaceKit's or FLAME's. `load_head` loads the linear `HeadMesh` that rendered talkers use with
photographs as textures. `personal_head` fits a whole head to the person of a portrait.
"""
