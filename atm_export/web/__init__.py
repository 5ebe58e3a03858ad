"""A page that runs finished exports in the browser, as static files (`runtime/web`)."""
