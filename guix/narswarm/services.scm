;; SPDX-License-Identifier: GPL-3.0-or-later
;; Shepherd services of narswarm for an operating-system declaration; docs/guix.md shows one.
(define-module (narswarm services)
  #:use-module (gnu packages admin)
  #:use-module (gnu services)
  #:use-module (gnu services admin)
  #:use-module (gnu services base)
  #:use-module (gnu services shepherd)
  #:use-module (gnu system shadow)
  #:use-module (guix gexp)
  #:use-module (guix records)
  #:use-module (ice-9 match)
  #:use-module (narswarm packages)
  #:use-module (srfi srfi-1)
  #:export (narswarm-configuration
            narswarm-configuration?
            narswarm-configuration-narswarm
            narswarm-configuration-settings
            narswarm-configuration-state
            narswarm-settings-file

            narswarm-tracker-service-type
            narswarm-seeder-service-type
            narswarm-substituter-service-type
            guix-configuration-with-narswarm))

(define-record-type* <narswarm-configuration>
  narswarm-configuration make-narswarm-configuration
  narswarm-configuration?
  (narswarm narswarm-configuration-narswarm ;file-like
            (default narswarm))
  ;; Settings of narswarm.toml(5) as an alist of symbols and strings, numbers, booleans, lists of
  ;; strings, or alists of such.
  (settings narswarm-configuration-settings
            (default '()))
  ;; Directory below /var/lib/narswarm that the daemon writes; #f: named after the program.
  (state    narswarm-configuration-state
            (default #f)))

;;;
;;; The settings file.
;;;

(define (toml-string text)
  (call-with-output-string
    (lambda (port)
      (write-char #\" port)
      (string-for-each
       (lambda (char)
         (case char
           ((#\" #\\) (write-char #\\ port) (write-char char port))
           (else (if (char<? char #\space)
                     (format port "\\u~4,'0x" (char->integer char))
                     (write-char char port)))))
       text)
      (write-char #\" port))))

(define (toml-value value)
  (match value
    (#t "true")
    (#f "false")
    ((? number?) (number->string value))
    ((? string?) (toml-string value))
    ((((? symbol? names) . values) ...)
     (if (null? names)
         "[]"
         (string-append "{ "
                        (string-join (map toml-pair names values) ", ")
                        " }")))
    ((values ...)
     (string-append "[" (string-join (map toml-value values) ", ") "]"))))

(define (toml-pair name value)
  (string-append (symbol->string name) " = " (toml-value value)))

(define (toml-table program settings)
  "The table of PROGRAM with SETTINGS, an alist, as a string."
  (string-append "[" program "]\n"
                 (string-concatenate
                  (map (match-lambda
                         ((name . value) (string-append (toml-pair name value) "\n")))
                       settings))))

(define* (narswarm-settings-file program settings)
  "A settings file with the table of PROGRAM, a string such as \"seeder\"."
  (plain-file (string-append "narswarm-" program ".toml")
              (toml-table program settings)))

;;;
;;; The two daemons.
;;;

(define %accounts
  (list (user-group (name "narswarm") (system? #t))
        (user-account
         (name "narswarm")
         (group "narswarm")
         (system? #t)
         (comment "narswarm's daemons")
         (home-directory "/var/empty")
         (shell (file-append shadow "/sbin/nologin")))))

(define (state-directory program config)
  (string-append "/var/lib/narswarm/"
                 (or (narswarm-configuration-state config) program)))

(define (log-file program)
  (string-append "/var/log/narswarm-" program ".log"))

(define (activation program)
  (lambda (config)
    #~(begin
        (use-modules (guix build utils))
        (let ((user (getpwnam "narswarm")))
          (for-each (lambda (directory)
                      (mkdir-p directory)
                      (chown directory (passwd:uid user) (passwd:gid user)))
                    ;; The second has the seeder's socket, where the substituter looks.
                    '(#$(state-directory program config) "/run/narswarm"))))))

(define (daemon program command directory-setting documentation)
  "A procedure that returns the Shepherd services of PROGRAM, run as COMMAND."
  (lambda (config)
    (let* ((settings (narswarm-configuration-settings config))
           (settings (if (assq-ref settings directory-setting)
                         settings
                         (alist-cons directory-setting (state-directory program config)
                                     settings)))
           (file (narswarm-settings-file program settings)))
      (list (shepherd-service
             (documentation documentation)
             (provision (list (symbol-append 'narswarm- (string->symbol program))))
             (requirement '(user-processes networking))
             (start #~(make-forkexec-constructor
                       (list #$(file-append (narswarm-configuration-narswarm config)
                                            "/bin/" program)
                             #$command "--config" #$file)
                       #:user "narswarm"
                       #:group "narswarm"
                       #:log-file #$(log-file program)
                       #:resource-limits '((nofile 65536 65536))
                       #:environment-variables
                       '("PATH=/run/current-system/profile/bin"
                         "LC_ALL=C.UTF-8")))
             (stop #~(make-kill-destructor)))))))

(define (daemon-service-type program command directory-setting documentation)
  (service-type
   (name (symbol-append 'narswarm- (string->symbol program)))
   (extensions
    (list (service-extension shepherd-root-service-type
                             (daemon program command directory-setting documentation))
          (service-extension account-service-type (const %accounts))
          (service-extension activation-service-type (activation program))
          (service-extension profile-service-type
                             (compose list narswarm-configuration-narswarm))))
   (default-value (narswarm-configuration))
   (description documentation)))

(define narswarm-tracker-service-type
  (daemon-service-type
   "tracker" "serve" 'data
   "Run narswarm's tracker, with which machines find each other's NARs."))

(define narswarm-seeder-service-type
  (daemon-service-type
   "seeder" "run" 'state
   "Run narswarm's seeder, which offers this machine's store over BitTorrent."))

;;;
;;; guix-daemon with the substituter.
;;;

(define narswarm-substituter-service-type
  (service-type
   (name 'narswarm-substituter)
   (extensions
    (list (service-extension
           etc-service-type
           (lambda (config)
             `(("narswarm/narswarm.toml"
                ,(narswarm-settings-file
                  "substituter" (narswarm-configuration-settings config))))))
          (service-extension profile-service-type
                             (compose list narswarm-configuration-narswarm))))
   (default-value (narswarm-configuration))
   (description
    "Have settings for narswarm's substituter, which guix-daemon runs when its
configuration comes from @code{guix-configuration-with-narswarm}.")))

(define (guix-configuration-with-narswarm config)
  "Return CONFIG, a <guix-configuration>, with guix-daemon running narswarm's
substituter, which NARSWARM-SUBSTITUTER-SERVICE-TYPE has in the system profile, in
place of 'guix substitute'."
  (guix-configuration
   (inherit config)
   (environment
    (cons* "GUIX_EXTENSIONS_PATH=/run/current-system/profile/share/guix/extensions"
           "NARSWARM_SUBSTITUTER=/run/current-system/profile/bin/substituter"
           (guix-configuration-environment config)))))
