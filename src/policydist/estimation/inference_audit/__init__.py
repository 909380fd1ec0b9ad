"""How much does a trained model give away about the distribution of its training data?"""
