"""Readers of documents: office files, mails, web pages, XML, pictures and archives."""
