"""From media files to frames and waveforms, one a segment."""
