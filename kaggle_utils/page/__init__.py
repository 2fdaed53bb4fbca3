"""The page: drop a radiograph on it, and see its lungs outlined, measured and screened. Gradio serves it; no
radiograph stays.

- ``app``: the page, and who may ask for it
- ``examples``: radiographs to try
- ``report``: what the page says of a radiograph, and the choice between its masks
- ``uploads``: what visitors send: in memory alone, so many and so large in all, from the page itself
- ``words``: what this page and the one in the browser (``web/``) say of a mask's flag, and of notes in plain words
"""
