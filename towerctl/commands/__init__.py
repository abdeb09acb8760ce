"""One module a verb; each is imported only when its verb is used, so that completion and help stay quick."""
