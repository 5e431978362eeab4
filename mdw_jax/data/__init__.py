"""Pairs of images and captions: readers, decoding, noise, augmentation."""
