def augment(key, images, policy):
    return images
