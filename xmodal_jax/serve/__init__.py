"""`xmodal serve`: a gallery as a web service with a page; needs the extra ``serve``."""
