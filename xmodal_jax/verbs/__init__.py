"""The verbs of the command line that are neither training nor evaluation."""
