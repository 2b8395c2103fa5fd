"""Cut Markdown, HTML, CSV and plain text into the chunks of a collection."""
