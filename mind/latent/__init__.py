"""`mind latent`: tests whether hidden states of single-perspective students hold the perspective or only its
wording."""
