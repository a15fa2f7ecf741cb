"""How much a text is like clean text: a bank of experts that has read some, and what is normal for texts of each length."""
