"""Picture files: which files are films, what a file says it is, and its pixels. :mod:`image` is the face for arrays.

- ``find``: which files in a folder are films, and what their results are called
- ``header``: format, size, number of pictures, which way up, before anything decodes it
- ``decode``: bytes to pixels, upright: what OpenCV reads, NIfTI of one slice, the raw films of JSRT
- ``complaints``: what a decoder says of damage and goes on
- ``gray``: gray levels of any type and range to 8 bits
- ``arrays``: tensors, Pillow's pictures and the like as NumPy arrays
- ``labels``: gray levels to a mask of the lungs
- ``overlay``: a mask's outline drawn into its radiograph: colour and width
- ``sheet``: many pictures in one, small, with captions
"""
