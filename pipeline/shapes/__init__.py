"""Parts of masks in the forms that other programs read: outlines, run lengths, label lines. Arrays alone, no frames."""
