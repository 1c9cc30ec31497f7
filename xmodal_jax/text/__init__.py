"""From a caption to token ids: tokenisers, vocabularies, word vectors."""
