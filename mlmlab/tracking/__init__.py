"""Where figures go: files, TensorBoard, and the person who watches."""
