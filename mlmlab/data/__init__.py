"""Text in, blocks of token ids out."""
