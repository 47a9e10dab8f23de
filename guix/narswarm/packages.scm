;; SPDX-License-Identifier: GPL-3.0-or-later
;; narswarm as a Guix package, and what it needs that Guix lacks or has in another version.
(define-module (narswarm packages)
  #:use-module (gnu packages bittorrent)
  #:use-module (gnu packages check)
  #:use-module (gnu packages databases)
  #:use-module (gnu packages gnupg)
  #:use-module (gnu packages monitoring)
  #:use-module (gnu packages python-build)
  #:use-module (gnu packages python-check)
  #:use-module (gnu packages python-compression)
  #:use-module (gnu packages python-crypto)
  #:use-module (gnu packages python-web)
  #:use-module (gnu packages python-xyz)
  #:use-module (guix build-system pyproject)
  #:use-module ((guix build-system python) #:select (pypi-uri))
  #:use-module (guix download)
  #:use-module (guix gexp)
  #:use-module (guix git-download)
  #:use-module ((guix licenses) #:prefix license:)
  #:use-module (guix packages)
  #:use-module (guix utils)
  #:export (narswarm
            python-bencode.py
            python-zstandard-0.25))

(define %root
  ;; The checkout that this file belongs to.
  (canonicalize-path (string-append (current-source-directory) "/../..")))

(define %ours?
  ;; A channel's checkout has no .git and no other files than ours.
  (or (git-predicate %root)
      (lambda (file stat) #t)))

(define-public python-zstandard-0.25
  ;; Payloads are made by libzstd 1.5.7 and no other version: its output is part of what identifies
  ;; a torrent (docs/profile-1.md).  This release of the bindings brings it along.
  (package
    (inherit python-zstandard)
    (version "0.25.0")
    (source (origin
              (method url-fetch)
              (uri (pypi-uri "zstandard" version))
              (sha256
               (base32
                "02sz41x6dhvhgz6g1znzrffkm76b5kn7da3dj33zab0nklby24vp"))))
    (arguments
     ;; narswarm's own tests check what the codec makes.
     (list #:tests? #f))
    (native-inputs (list python-setuptools python-packaging))))

(define-public python-bencode.py
  (package
    (name "python-bencode.py")
    (version "4.0.0")
    (source (origin
              (method url-fetch)
              (uri (pypi-uri "bencode.py" version))
              (sha256
               (base32
                "0p70lsi504wn15x6xfwrlbm5k0qkc0rbdl4k11jim9952zdcq91a"))))
    (build-system pyproject-build-system)
    (arguments
     ;; The release has no tests.
     (list #:tests? #f))
    (native-inputs (list python-pbr python-setuptools))
    (home-page "https://github.com/fuzeman/bencode.py")
    (synopsis "Bencode for Python")
    (description
     "This package encodes and decodes bencode, the format of BitTorrent's
metadata and messages.")
    (license license:bsd-3)))

(define-public narswarm
  (package
    (name "narswarm")
    (version "0.1.0")
    (source (local-file %root "narswarm-checkout"
                        #:recursive? #t
                        #:select? %ours?))
    (build-system pyproject-build-system)
    (arguments
     (list
      ;; The others need namespaces, browsers and servers.
      #:test-flags #~(list "-m" "not e2e and not conformance"
                           "tests/narswarm" "tests/mkmeta" "tests/substituter")
      #:phases
      #~(modify-phases %standard-phases
          (add-after 'unpack 'find-libgcrypt
            (lambda* (#:key inputs #:allow-other-keys)
              (substitute* "narswarm/gcrypt.py"
                (("^_SONAME = .*")
                 (string-append "_SONAME = \""
                                (search-input-file inputs "lib/libgcrypt.so.20")
                                "\"\n")))))
          (add-after 'install 'install-extension
            (lambda _
              (let ((extension "substituter/guix/extensions/substitute.scm")
                    (directory (string-append #$output "/share/guix/extensions")))
                ;; guix-daemon needs to be told of the directory alone.
                (substitute* extension
                  (("/usr/local/bin/substituter")
                   (string-append #$output "/bin/substituter")))
                (install-file extension directory)))))))
    (native-inputs
     (list python-hypothesis python-pytest python-setuptools))
    (inputs
     (list libgcrypt
           libtorrent-rasterbar
           gunicorn
           python-apscheduler
           python-bencode.py
           python-click
           python-cryptography
           python-flask
           python-prometheus-client
           python-psycopg
           python-redis
           python-zstandard-0.25))
    (home-page #f)
    (synopsis "Guix substitutes over BitTorrent")
    (description
     "narswarm moves GNU Guix substitutes over plain BitTorrent, so that every
machine that holds a store item helps to serve it.  It has a substituter that
takes the place of @command{guix substitute} under the daemon, a seeder that
offers the local store, a tracker with an index by NAR hash, and a program that
makes the canonical torrent of a store item.  What counts is, as in Guix, a
narinfo signed by an authorized key.")
    (license license:gpl3+)))
