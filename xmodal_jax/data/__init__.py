"""Data: importers, the prepared set on disk, its checker, the vocabulary and the tf.data pipeline."""
