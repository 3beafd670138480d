//! Tests of the loaders. Files are built here byte by byte, by code that shares nothing with the readers.

mod fixtures;
