"""What the runtimes that compute in this process share: folders, files, token counts, memory."""
