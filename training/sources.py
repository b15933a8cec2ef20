"""The Debian packages whose prose the model is trained on, each with its licence."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One Debian package that ships English prose.

    Attributes:
        package: Name of the Debian (bookworm) package.
        licence: Licence of its texts, from the package's copyright file.
        keep: Part of a path that a file must have, which excludes other languages and data.
    """

    package: str
    licence: str
    keep: str = "/usr/share/"


SOURCES = (
    Source("wordnet-base", "WordNet 3.0 licence", "/wordnet/data."),
    Source("dict-gcide", "GPL-2.0+ (its base, Webster 1913, is public domain)", ".dict.dz"),
    Source("dict-foldoc", "GFDL-1.2+", ".dict.dz"),
    Source("dict-jargon", "public domain", ".dict.dz"),
    Source("dict-devil", "public domain", ".dict.dz"),
    Source("fortunes", "BSD / public domain quotations", "/games/fortunes/"),
    Source("fortunes-min", "BSD / public domain quotations", "/games/fortunes/"),
    Source("anarchism", "GFDL-1.1+ or GPL-2.0+", "/markdown/"),
    Source("gnome-user-docs", "CC-BY-SA-3.0", "/help/C/"),
    Source("evolution-common", "CC-BY-SA-3.0 / GFDL-1.1+", "/help/C/"),
    Source("gnome-mahjongg", "CC-BY-SA-3.0", "/help/C/"),
    Source("gnome-sudoku", "CC-BY-SA-3.0", "/help/C/"),
    Source("gnome-chess", "CC-BY-SA-3.0", "/help/C/"),
    Source("aisleriot", "GFDL-1.1+", "/help/C/"),
    Source("tali", "GFDL-1.1+", "/help/C/"),
    Source("mate-user-guide", "GFDL-1.1+", "/help/C/"),
    Source("gnucash-docs", "GFDL-1.1+", "/C/"),
    Source("gnumeric-doc", "GPL-2.0 / GFDL-1.1+", "/C/"),
    Source("libreoffice-help-en-us", "MPL-2.0", "/en-US/"),
    Source("gimp-help-en", "GFDL-1.2+", "/help/en/"),
    Source("kmymoney-common", "GFDL-1.2+", "/HTML/en/"),
    Source("kstars-data", "GFDL-1.2+", "/HTML/en/"),
    Source("kturtle", "GFDL-1.2+", "/HTML/en/"),
    Source("parley-data", "GFDL-1.2+", "/HTML/en/"),
    Source("tellico-doc", "GFDL-1.2+", "/HTML/en/"),
    Source("debian-handbook", "CC-BY-SA-3.0 or GPL-2.0+", "/en-US/"),
    Source("debian-reference-en", "GPL-2.0+"),
    Source("developers-reference", "GPL-2.0+", ".html"),
    Source("debian-faq", "GPL-2.0+", ".html"),
    Source("debian-policy", "GPL-2.0+", ".html"),
    Source("debian-edu-doc-en", "GPL-2.0+", ".html"),
    Source("aptitude-doc-en", "GPL-2.0+", ".html"),
    Source("installation-guide-amd64", "GPL-2.0+", "/en/"),
    Source("abs-guide", "public domain", ".html"),
    Source("mh-book", "GPL-2.0+", ".htm"),
    Source("viking", "GPL-2.0+ / GFDL-1.3", "/C/"),
    Source("kicad-doc-en", "GPL-3.0+ or CC-BY-3.0+", ".html"),
    Source("python3.11-doc", "PSF-2.0", ".html"),
    Source("python-django-doc", "BSD-3-Clause", ".html"),
    Source("python-pandas-doc", "BSD-3-Clause", ".html"),
    Source("python-sklearn-doc", "BSD-3-Clause", ".html"),
    Source("docutils-doc", "public domain / BSD-2-Clause", ".html"),
    Source("sphinx-doc", "BSD-2-Clause", ".html"),
    Source("linux-doc-6.1", "GPL-2.0", "/html/"),
    Source("postgresql-doc-15", "PostgreSQL licence", ".html"),
    Source("git-doc", "GPL-2.0", ".html"),
    Source("apache2-doc", "Apache-2.0", ".html"),
    Source("sqlite3-doc", "public domain", ".html"),
    Source("rust-doc", "MIT or Apache-2.0", "/html/"),
    Source("grass-doc", "GPL-2.0+", ".html"),
    Source("perl-doc", "Artistic or GPL-1.0+", ".pod"),
)

# Separate from the others, from which the held-out texts are drawn.
EVERYDAY = (Source("trans-de-en", "GPL-2.0+", "/trans/de-en"),)
