"""Bring files of a job's output claim here: the artifact, and the report.

`pull` is the entry point. A `reader_pod` mounts the claim and sends files as a tar stream over exec, with `pod_script`;
`transfer` opens the streams again when they are cut; `receive` writes them to files; `target` decides which files are
missing and what may be written.
"""
