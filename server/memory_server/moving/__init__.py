"""Moving data out of a namespace and in again, from this product's own files and from those of others."""
