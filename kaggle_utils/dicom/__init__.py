"""DICOM: radiographs in, masks out. Each file here is imported where it is needed, as its packages are optional.

- ``read``: a DICOM file's bytes to 8-bit gray, with its spacing, its lie and notes
- ``windows``: stored values to gray, by windows and look-up tables
- ``tags``: which elements are read, bounded in number, length and memory
- ``seg``: masks as DICOM segmentation objects
- ``coco``: masks as COCO annotations, in a Parquet file
"""
