"""The page that segments lungs in the browser: ``python -m web.make`` builds it."""
