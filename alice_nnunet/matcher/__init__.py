"""Finding the same place of the body in two people.

Four words, one thing each:

matcher: answers where a point of one volume lies in another (data/match.py).
embedding: the vectors of one volume, each of which tells where in a body it lies.
embedding network: makes an embedding; SamNet or ContextNet, learned without labels by alice-embed.
index: the folder with the embeddings of all volumes of a dataset.

Source: SAM, self-supervised anatomical embedding (Yan et al., IEEE TMI 2022).
"""
