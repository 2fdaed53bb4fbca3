"""Lung segmentation in chest radiographs with a U-Net: raw public sets in, masks for new films out."""
