"""Kedge: image retrieval with learned class anchors. Train, evaluate, index and search."""
