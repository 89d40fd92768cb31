"""From the body of a request to rows: a module for each media type, and the checks against the model's signature."""
