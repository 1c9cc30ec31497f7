"""Parts that two or more systems share: text encoders, region pooling, recurrent cells."""
