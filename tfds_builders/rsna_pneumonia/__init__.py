"""RSNA Pneumonia Detection Challenge: opacity boxes and three classes on NIH images."""
