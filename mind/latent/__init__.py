"""Latent analysis: what do the hidden states of single-perspective students hold, the perspective or its wording?"""
